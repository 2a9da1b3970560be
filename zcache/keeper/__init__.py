"""The keeper: holds the image, starts servers, and replaces one that dies."""
