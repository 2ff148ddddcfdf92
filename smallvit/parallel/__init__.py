"""Several processes that train one network, and batches that are cut into parts."""
