"""placeholder"""
OTHER_SERVER_CHECKS = {}
