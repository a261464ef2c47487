"""The default model and the default speech: all that a first run needs, built on the user's own machine."""
