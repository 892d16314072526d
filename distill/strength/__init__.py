"""How strong each loss of the mixture is: weights, and shares of the detection loss's gradient."""
