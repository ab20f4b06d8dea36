"""The method: masking, branches, loss, step, schedules. torch and the standard library only."""
