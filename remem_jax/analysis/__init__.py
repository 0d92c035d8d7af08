"""What the paper says of pretrained ViTs, measured: expertness, its bound, criticality."""
