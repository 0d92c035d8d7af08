"""The data sets of the registry, as TFDS prepares them; read without TensorFlow."""
