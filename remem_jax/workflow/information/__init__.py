"""How much of the image a teacher's features keep: decoders, critics and their measurement."""
