"""Sample images in, quantised graphs out, with what that cost."""
