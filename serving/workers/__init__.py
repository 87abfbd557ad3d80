"""Worker processes, and how they follow the champion."""
