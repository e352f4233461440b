"""Images and labels in, bundle out.

The renderer and the cutter (`screens`, `cutting`) need numpy and OpenCV only; the network needs the extra
`training`.
"""
