"""Manifests out of published corpora, from local copies that the user downloaded: nothing here fetches anything."""
