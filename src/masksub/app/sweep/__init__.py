"""Settings tried against each other: a study that many workers share, or a ratio that is raised step by step."""
