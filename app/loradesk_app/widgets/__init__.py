"""Small widgets that several panes use; none of them knows what it is used for."""
