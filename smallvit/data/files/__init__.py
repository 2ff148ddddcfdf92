"""From files to a packed store: data sets, how they lie on a disk, and how they are read."""
