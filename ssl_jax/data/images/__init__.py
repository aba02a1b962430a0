"""Images: decoding, augmentation, views, and the data set that a config's `data` section describes."""
