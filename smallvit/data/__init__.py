"""From files to batches of views: data sets, packed arrays, splits, geometry, augmentation."""
