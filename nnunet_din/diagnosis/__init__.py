"""What hinders nnU-Net and DIN on a machine or in a data set: each finding with its remedy."""
