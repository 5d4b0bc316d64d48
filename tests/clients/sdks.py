"""placeholder"""
SDK_CHECKS = {}
