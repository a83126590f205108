"""What the facades are measured against: diffusers itself, and diffusers executed in float64."""
