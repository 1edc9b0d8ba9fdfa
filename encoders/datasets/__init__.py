"""Public data sets in their own layouts on disk, one file each; `encoders.dataset_sources` lists them."""
