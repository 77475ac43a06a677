"""A trained network behind HTTP: requests made into batches, limits on what a request may be, a page to try it."""
