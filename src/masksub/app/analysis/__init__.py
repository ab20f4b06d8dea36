"""Why a run is stable: its branches' gradients and agreement, accuracy under masks, sharpness of its losses."""
