"""Files without threads; `open` of this package's `opening` is `uringloop.open`."""
