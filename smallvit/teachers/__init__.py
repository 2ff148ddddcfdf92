"""The frozen annotator of stage 2 and its score maps."""
