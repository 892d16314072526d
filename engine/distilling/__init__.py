"""From a recipe and teachers' files to the distillers that plug into a training.

Imports engine.config, engine.runfolder and engine.inference.
"""
