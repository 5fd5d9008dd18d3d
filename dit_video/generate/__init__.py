"""From a prompt to a clip: what is asked, checked before anything is computed; the pipeline; the clip and its files."""
