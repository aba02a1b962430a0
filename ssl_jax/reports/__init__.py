"""Tables, curves, panels and one page of a run. Nothing heavy is imported before it is drawn."""
