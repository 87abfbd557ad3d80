"""Film series of MovieLens 100k: groups of items that belong together, which no model is trained on."""

from __future__ import annotations

FILM_SERIES: dict[str, tuple[str, ...]] = {
    "ace ventura": ("67", "364"),
    "batman": ("231", "254", "29", "403"),
    "brady bunch": ("401", "412"),
    "die hard": ("144", "226", "550"),
    "evil dead": ("184", "201"),
    "godfather": ("127", "187"),
    "jaws": ("234", "452"),
    "jurassic park": ("82", "252"),
    "scream": ("288", "895"),
    "star trek": ("222", "227", "228", "229", "230", "380", "449", "450"),
    "terminator": ("195", "96"),
    "under siege": ("233", "1228"),
    "young guns": ("232", "1188"),
}
"""Name of a series -> item ids of its films."""
