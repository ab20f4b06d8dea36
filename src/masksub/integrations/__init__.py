"""The two-branch step inside other people's trainers; one file each, none of them loaded here."""
