"""One module a page; each asks the desk and renders, no more."""
