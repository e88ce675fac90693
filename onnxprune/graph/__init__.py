"""Models as files and graphs: read, guarded, traced, edited and written."""
