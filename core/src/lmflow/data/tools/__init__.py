"""Looking at a data set, checking it, and writing it in another format."""
