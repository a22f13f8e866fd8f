"""Makes datasets: cohorts, splits, manifests."""
