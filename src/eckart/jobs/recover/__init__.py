"""Complete a table of ratings; find the top singular vectors of a stream of rows."""
