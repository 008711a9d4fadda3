"""Read and write checkpoint folders of the published layout."""
