"""Images: what may be read, how it is decoded and resized, and how it is augmented."""
