import sys, collections
F=collections.defaultdict(lambda:[0]*9); R=[]
for l in open(sys.argv[1]):
    p=l.rstrip('\n').split('\t'); v=list(map(float,p[1:10])); f=p[0].split('::')[0]
    for i,x in enumerate(v): F[f][i]+= x if i!=3 else max(0,x-F[f][3])
    R.append((v[0]+v[1],v,p[0]))
n=int(sys.argv[2]);m=int(sys.argv[3])
h='cpu self child wall rss compile trace lower ncomp hits'
print(h)
def row(v): return f"{v[0]+v[1]:6.1f} {v[0]:6.1f} {v[1]:6.1f} {v[2]:6.1f} {v[3]:6.0f} {v[4]:6.1f} {v[5]:6.1f} {v[6]:6.1f} {v[7]:5.0f} {v[8]:5.0f}"
print('TOTAL cpu', sum(r[0] for r in R), 'self',sum(r[1][0] for r in R),'child',sum(r[1][1] for r in R),'compile',sum(r[1][4] for r in R),'trace',sum(r[1][5] for r in R),'lower',sum(r[1][6] for r in R))
for k,v in sorted(F.items(),key=lambda kv:-(kv[1][0]+kv[1][1]))[:m]: print(row(v),k)
print()
for c,v,k in sorted(R,key=lambda r:-r[0])[:n]: print(row(v),k)
