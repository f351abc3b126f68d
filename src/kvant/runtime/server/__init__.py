"""An inference engine's server as a confined process: started, watched, asked over a socket, stopped."""
