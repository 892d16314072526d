"""From a recipe and teachers' files to the distillers that plug into a training, and to what a student inherits.

Imports engine.config, engine.runfolder and engine.inference.
"""
