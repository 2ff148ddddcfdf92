"""Public weights of the papers, renamed to this toolkit's models; weights fitted to other sizes."""
