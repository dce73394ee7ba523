"""The judge: reads result files, decides, reports. Imports neither torch nor the library nor the instrument."""
