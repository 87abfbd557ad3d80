"""Worker processes, and how they load the champion."""
