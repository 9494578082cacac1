"""The error of the decoder of images."""


class ImageError(ValueError):
    """What is wrong with an image, in one sentence for whoever sent it."""
