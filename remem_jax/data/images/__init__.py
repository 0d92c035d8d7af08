"""Images: supported formats, decoding, resizing and augmentation."""
