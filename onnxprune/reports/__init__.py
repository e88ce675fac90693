"""Reports: records as JSON, and their forms for terminals, pages, pull requests and CI."""
