"""Does the budget follow the machine's memory pressure?"""
