"""An analysis of checkpoints: expertness, information and criticality."""
