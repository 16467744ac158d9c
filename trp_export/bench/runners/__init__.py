"""The programs that run on devices. They travel alone, so they import nothing of ours."""
