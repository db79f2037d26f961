"""The two algorithms on RLlib. Read module, vector_env, rollout, env_runner, learner, fused, then spg, then rpg.

module       the RLModule: policy, critic and the frozen prior
vector_env   one interface to gymnasium's vector environments and envpool, which works without Ray
rollout      the arrays that an env runner hands to the learner
env_runner   steps the environments
learner      rollouts → rewards → advantages → minibatch steps
fused, flat  the minibatch step without autograd, on one flat buffer
spg, rpg     the algorithms and their configurations
compiler     keeps torch's compiler out of processes that compile nothing
"""
