"""Tables, curves, panels and the page of a run. Heavy libraries are imported only when something is drawn."""
