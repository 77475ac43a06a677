"""Classification: an image, and the one class that it is of."""
