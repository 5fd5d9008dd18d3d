"""Videos and captions: files, loaders, and the toy world."""
